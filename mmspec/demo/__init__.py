"""The page of `mmspec demo`: plain and speculative decoding of one question, side by side.

What happens is in `session`, without a page: a generator of views, one of each moment. `rendering` turns a view into
HTML, and `page` alone knows Gradio, the optional extra `demo`.
"""
