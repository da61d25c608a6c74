"""The page of `mmspec demo`, which shows plain and speculative decoding of one question side by side.

`session` produces views, each of one moment, and knows nothing of the page. `rendering` turns a view into HTML. Only
`page` knows Gradio, the optional extra `demo`.
"""
