"""The judges of other projects, run whole, and the document that their verdicts become (`make conformance`)."""
