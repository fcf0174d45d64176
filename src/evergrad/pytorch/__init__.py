"""Everything that needs torch: publishing, training, and models that follow a replica."""
