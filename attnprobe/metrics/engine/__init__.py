"""The engine of all metrics: streams of maps to measurements, and shared linear algebra."""
