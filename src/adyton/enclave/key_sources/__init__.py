"""Where sealing keys come from for an enclave whose hardware has none: from outside, to whom that party lets in."""
