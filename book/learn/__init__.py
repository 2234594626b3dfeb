"""The learner's loop: predict, see, exercise, quiz, and go on where you stopped. Its names are those of ``book``.

::

    contents.toml ─▶ contents ─▶ navigation          what the book holds
    <section>.md ─▶ text ─▶ exercise, quiz           what a section asks
    predictions, trace                               what stands in its notebook, and in its module
    grading ─▶ verdict                               whether it is right, and why not
    progress                                         what was predicted, solved and read
    overview                                         the contents with ticks, and where to go on
    panel                                            predictions as widgets

What is right stands apart from how it is shown: nothing here needs a browser.
"""
