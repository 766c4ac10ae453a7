"""Inside: the application, its life cycle, the gRPC application, and the runtime that serves the control protocol."""
