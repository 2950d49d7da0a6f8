"""
The page /console: sessions and health of a deployment in the browser.
"""
