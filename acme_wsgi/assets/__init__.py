"""Assets: bundles, smaller files, and URLs that change with the content.

Law: knows static routes by what they serve, never how they answer. Built once for all workers, in a directory
that they share; what a route asks is a look-up. Imports no gevent before a worker starts the keeper.

    names, css, scripts, pages     what files say
    minify, bundle, order, build   what is made of them
    tree, home                     where they come from, and where the results lie
    service, keeper, current       what the running server asks, and what keeps it right
"""

from acme_wsgi.assets.current import asset_url
from acme_wsgi.assets.records import Asset
from acme_wsgi.assets.service import Assets, Mounted

__all__ = ["Asset", "Assets", "Mounted", "asset_url"]
