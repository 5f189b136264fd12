"""What is run: arms times seeds, transfer to targets, grids of strengths, and the analyses of trained networks."""
