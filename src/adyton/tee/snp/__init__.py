"""AMD SEV-SNP: attestation reports of versions 2, 3 and 5, signed by a VCEK or a VLEK of Milan, Genoa or Turin.

"ABI" is AMD's publication 56860, SEV Secure Nested Paging Firmware ABI Specification; "KDS" is 57230, Versioned Chip
Endorsement Key (VCEK) Certificate and KDS Interface Specification.
"""
