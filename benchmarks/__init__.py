"""Speed and fidelity, rerunnable: the input factory, the demo and the benchmarks."""
