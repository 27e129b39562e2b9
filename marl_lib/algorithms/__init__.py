"""One file an algorithm: configuration, networks, acting, loss, update."""
