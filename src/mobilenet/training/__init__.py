"""From photos to a model. Nothing outside this package imports torch."""

import os

# Threads of torch that wait go to sleep; it is read when torch is first imported. With other work on one of two cores,
# those that spin instead, as is the default, held each other up: a training did 8 images/s, and with this 97.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
