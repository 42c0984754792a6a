"""Badges: small pictures with the certified λ_max of the newest analysis of a series, each readable with one token."""
