"""What a person looks at: the live page, the API, the stream, and the metrics."""
