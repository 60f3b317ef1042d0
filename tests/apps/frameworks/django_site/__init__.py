"""A Django project: the admin with its login, forms, uploads, streams and files; data under SITE_DATA."""
