"""
How a whole bus is: what is measured, and from where on it is not well.
"""
