"""A report and its verdict as HTML with plots, Markdown and JUnit XML: pure functions."""

from service.rendering.html import render_html, render_sections, render_verdict, stylesheet
from service.rendering.junit import render_junit
from service.rendering.markdown import render_markdown

__all__ = ["render_html", "render_junit", "render_markdown", "render_sections", "render_verdict", "stylesheet"]
