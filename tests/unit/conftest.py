from hypothesis import settings
from synthetic import crossed, everything, made, page  # noqa: F401
from trainings import chained, on_gpu, peft_model, train  # noqa: F401

# No example is too slow: its duration depends on the machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
