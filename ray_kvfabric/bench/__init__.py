"""What `kvfabric bench` measures: pushes between two worker processes, beside the machine's own limits."""
