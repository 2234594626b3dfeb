"""What each section asks: exercises with their judges, the hidden trace, the quiz. A module a section.

Apart from the notebooks, so that a judge can be a function of a module and a solution does not stand beside its task.
"""
