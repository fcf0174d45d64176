"""Every experiment of Prapas et al. 2021, on this library through its public interface: see README.md beside this."""
