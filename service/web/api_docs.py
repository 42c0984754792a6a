"""The page /docs: the specification of the HTTP API, shown by Swagger UI, without a network."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.web.pages import page

DOCS_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""That of the other pages, and images in the stylesheet, with which Swagger UI draws its arrows."""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_api_docs(request: Request) -> Response:
    return page(request, "docs.html", content_policy=DOCS_POLICY)
