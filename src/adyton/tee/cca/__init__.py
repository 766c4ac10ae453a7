"""Arm CCA: a platform's token and a realm's, bound together. No vendor has a root; each platform's key is pinned."""
