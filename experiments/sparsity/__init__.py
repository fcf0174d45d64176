"""The deployed model's score as a function of bytes sent, method by method; see README.md."""
