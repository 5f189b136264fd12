"""The training of one network: state, step, loop, and what looks on."""
