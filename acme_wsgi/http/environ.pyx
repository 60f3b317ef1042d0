# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Request fields as the entries of a WSGI environ (PEP 3333, RFC 3875 4.1.18).

Law: names with an underscore never get in, because `X_User` and `X-User` would become the same key; neither
does `Proxy`, which would become HTTP_PROXY and be taken for the variable of that name. Everything else arrives,
lines of one name joined in their order.
"""

import sys

from cpython.object cimport PyObject
from libc.string cimport memcmp, memcpy

from acme_wsgi.http.fields cimport Field
from acme_wsgi.http.grammar cimport same_name
from acme_wsgi.http.known cimport Known, Names, find_name, learn_name

cdef extern from "Python.h":
    object PyUnicode_DecodeLatin1(const char *text, Py_ssize_t length, const char *errors)
    object PyUnicode_New(Py_ssize_t length, unsigned int highest)
    void *PyUnicode_1BYTE_DATA(object text)
    PyObject *PyDict_SetDefault(object mapping, object key, object value) except NULL

cdef Names names

cdef str GET = "GET"
cdef str POST = "POST"
cdef str HEAD_ = "HEAD"


cdef object latin1(const char *text, size_t length):
    return PyUnicode_DecodeLatin1(text, <Py_ssize_t>length, NULL)


cdef object ascii(const char *text, size_t length):
    """As latin1(), for bytes known to be ASCII: nothing is looked at again."""
    cdef object result = PyUnicode_New(<Py_ssize_t>length, 127)
    memcpy(PyUnicode_1BYTE_DATA(result), text, length)
    return result


cdef object method_name(Head *head):
    """The method as a str; the frequent ones without making one."""
    if head.method_length == 3 and memcmp(head.method, b"GET", 3) == 0:
        return GET
    if head.method_length == 4 and memcmp(head.method, b"POST", 4) == 0:
        return POST
    if head.method_length == 4 and memcmp(head.method, b"HEAD", 4) == 0:
        return HEAD_
    return latin1(head.method, head.method_length)


cdef object make_key(Field *field):
    """HTTP_ACCEPT_LANGUAGE for accept-language."""
    name = latin1(field.name, field.name_length).upper().replace("-", "_")
    if name == "CONTENT_TYPE" or name == "CONTENT_LENGTH":
        return sys.intern(name)
    # Interned, so that an application's own "HTTP_..." is found without comparing it.
    return sys.intern("HTTP_" + name)


cdef object environ_key(Field *field):
    """The environ's key for a field name; spellings seen before cost one look."""
    cdef Known *entry = find_name(&names, field)
    if entry.text != NULL:
        return <object>entry.text
    key = make_key(field)
    learn_name(&names, entry, field, key)
    return key


cdef int put_fields(dict environ, Head *head) except -1:
    """Put all fields of the head into the environ."""
    cdef int index
    cdef Field *field
    cdef PyObject *there
    cdef Py_ssize_t entries
    for index in range(head.nfields):
        field = &head.fields[index]
        if field.underscore or (field.name_length == 5 and same_name(field.name, 5, b"proxy", 5)):
            continue
        key = environ_key(field)
        value = ascii(field.value, field.value_length) if field.ascii else latin1(field.value, field.value_length)
        entries = len(environ)
        there = PyDict_SetDefault(environ, key, value)
        # Identity tells nothing: an empty value is the same object in every line.
        if len(environ) == entries:
            joint = "; " if key == "HTTP_COOKIE" else ", "
            environ[key] = <object>there + joint + value
    if head.absolute:
        # RFC 9112 3.2.2: the target's authority counts, whatever Host says.
        environ["HTTP_HOST"] = latin1(head.host, head.authority_length)
    return 0
