"""Everything that a user calls by a name, each an object with all that belongs to that name.

``architectures``, ``training_attacks``, ``transfer_methods`` and ``evaluation_attacks`` hold a
dictionary each. Settings, help texts, sweeps, reports and plots ask these dictionaries; nothing
else lists names. To add one is to write its code in a file and put an object into the dictionary.

Importing this loads no torch. An object names its code as ``"package.module:function"``, which is
imported when it is first used.
"""
