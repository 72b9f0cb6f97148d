"""What `tools/train.py`, `tools/validate.py` and `tools/predict.py` are made of, on top of timm's building blocks.

`arguments` and `config` say what to do, `run_directory`, `checkpoint` and `state` keep what came out, `model`, `tasks`,
`build`, `loop`, `stop` and `evaluation` do the work, `logs` and `reports` show it. `fit`, `validate` and `predict` are
the commands themselves, each a `main(argv)` that returns an exit code. Importing this package imports none of the
optional dependencies.
"""
