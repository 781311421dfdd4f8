"""Where caches lie: memfds of the fabric, registered ranges of others, and the kernel that copies between them."""
