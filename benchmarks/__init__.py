"""Side-by-side timings of ckptconv and the tools that do the same job today."""
