"""Where Django's requests go; the static files of the admin are served through Django too."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import path, re_path

from tests.apps.frameworks.django_site import views

urlpatterns = [
    path("admin/", admin.site.urls),
    re_path(r"^static/(?P<path>.*)$", serve, {"insecure": True}),
    path("upload", views.upload),
    path("stream/<int:pieces>", views.stream),
    path("file/<str:name>", views.file),
    path("whoami", views.whoami),
    path("local/<str:value>", views.local),
]
