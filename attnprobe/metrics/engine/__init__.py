"""What all metrics are computed with: streams of maps to measurements, and shared linear algebra."""
