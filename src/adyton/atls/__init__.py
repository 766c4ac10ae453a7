"""The attested channel, ATLS/1, both ends of it: a gRPC channel that exists only if the other end proved what it is."""
