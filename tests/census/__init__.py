"""The census: whoever dies or gives up, in whatever state of a transfer, nothing stays behind."""
