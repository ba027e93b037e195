"""A page and OpenAI's protocol over one loaded bundle, on the workstation itself. Needs the extra `serve`.

    client -> protocol.py (connections) -> security.py (who may ask) -> app.py (routes)
           -> body.py, chat_request.py (what is asked) -> line.py (the queue) -> worker.py (one thread, the model)
           -> chat.py, chat_response.py (the answer, as it comes)

Images stay in memory, and no question, answer, name or header is written anywhere.
"""
