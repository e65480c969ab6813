"""The embedded default: everything that `openrlhf demo` makes for itself."""
