"""`python -m data2vec` is `data2vec`; torchrun starts it this way."""

import sys

from data2vec.cli import main

sys.exit(main())
