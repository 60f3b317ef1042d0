"""The WSGI application of the project; its database is made on the first start."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.apps.frameworks.django_site.settings")

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
