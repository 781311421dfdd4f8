"""Random pushes with faults between endpoints, against a shadow copy of every byte of the receiver's memory.

ends       Receiver and Sender: the two endpoints, here or in a child process
requests   what a request wants and how its senders bring it; pure
attempt    one request under a grant: what each push and each wait may come to
run        very many of them, and plain pushes between; after each, every byte is what the shadow says
"""
