"""What the pages in ``docs/`` are made with: small sick networks, their logs and pictures, and the site's hooks."""
