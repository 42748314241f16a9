"""One file per page; `render` draws it."""
