"""An S3 server for tests: moto's, in a process of its own, and a proxy in front of it that counts and fails requests."""
