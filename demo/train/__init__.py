"""Training of the demo model: `python -m medvlm.demo.train OUT`. Needs torch and transformers."""
