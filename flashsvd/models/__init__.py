"""Models: where they come from, and which of their linears can be factored."""
