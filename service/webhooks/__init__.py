"""Webhooks: signed messages about analyses that have ended (https://www.standardwebhooks.com)."""
