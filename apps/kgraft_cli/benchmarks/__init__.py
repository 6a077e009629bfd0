"""What `kgraft bench` measures kgraft against, each contender in a process of its own."""
