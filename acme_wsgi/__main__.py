"""`python -m acme_wsgi` is the command `acme-wsgi`. This file knows that and nothing else."""

import sys

from acme_wsgi.cli.serve import main

sys.exit(main())
