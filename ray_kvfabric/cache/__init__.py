"""What a cache is: types, keys, layout. Pure: no memory, no process, no clock."""
