"""To import this readies a process for train.py: tests/script_server.py does so. Its forks draw no
curves, which takes longer than a run.
"""

import tests.colossalai_on_cpu  # noqa: F401  which imports the frameworks quietly

# isort: split
import bert.training.model_card
import bert.training.run

bert.training.run.Run._draw_curves = lambda *arguments: None
bert.training.model_card.plot_curves = lambda *arguments: None  # of --export
