"""Speed and closeness, rerunnable: docs/benchmarks.md names every command beside its table.

Commands: `calls` (one attention call), `forward` (whole models), `clips` (a trained model's clips),
`fidelity` (error against time), `capture` (heads of the trained model), `cards` (graphics cards,
computed), `my_card` (your own, measured).
"""
