"""Text written by a model, dense or compressed, through the runtime that decodes; with how fast it came."""
