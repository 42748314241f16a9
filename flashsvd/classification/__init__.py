"""A person's own text, classified by a dense model and its compressed one."""
